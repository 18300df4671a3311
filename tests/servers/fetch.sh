#!/usr/bin/env bash
# Puts a PostgreSQL of another Debian release into a folder and prints where its programs are.
#
#   tests/servers/fetch.sh timescale    TimescaleDB (Apache edition) on PostgreSQL 17, of Debian trixie
#   tests/servers/fetch.sh postgres15   PostgreSQL 15, of Debian bookworm
#
# Nothing is installed and nobody has to be root: apt resolves and verifies the packages with a state of its own, dpkg-deb
# unpacks them, and each program is started by the C library it came with. The mirror is the one this machine's apt uses. What was
# fetched is kept (WATTLEDGER_TEST_CACHE, else /var/cache/wattledger for root, ~/.cache/wattledger for others); remove it to renew it.
set -euo pipefail
umask 022 # who runs the server is not who fetches it

fail() { echo "tests/servers/fetch.sh: $*" >&2; exit 1; }

case "${1:-}" in
  timescale) release=trixie major=17; packages=(postgresql-17 postgresql-17-timescaledb) ;;
  postgres15) release=bookworm major=15; packages=(postgresql-15) ;;
  *) fail "say which server: timescale or postgres15" ;;
esac
for program in apt-get dpkg-deb flock; do
  command -v "$program" >/dev/null || fail "needs $program: Debian, or a system derived from it"
done

if [ -n "${WATTLEDGER_TEST_CACHE:-}" ]; then cache=$WATTLEDGER_TEST_CACHE
elif [ "$(id -u)" = 0 ]; then cache=/var/cache/wattledger # the server's account has to reach it, and does not reach /root
else cache=${XDG_CACHE_HOME:-$HOME/.cache}/wattledger; fi
mkdir -p "$cache"
cache=$(cd "$cache" && pwd)
kept=$cache/$1
bin=$kept/usr/lib/postgresql/$major/bin
exec 9>"$cache/$1.lock"
flock 9 # two runs at once: the second finds what the first fetched
if [ -x "$bin/postgres" ]; then echo "$bin"; exit; fi

# Where this machine gets its own release from (a mirror list, a snapshot), or any repository that is called debian.
own=$(. /etc/os-release && [ "$ID" = debian ] && echo "${VERSION_CODENAME:-none}") || own=none
mirror=$(apt-get indextargets --format '$(REPO_URI) $(RELEASE) $(COMPONENT)' 'Created-By: Packages' |
  awk -v own="$own" '$3 == "main" && $1 !~ /security/ && ($2 == own || $1 ~ /\/debian(\/|$)/) {print $1; exit}')
[ -n "$mirror" ] || fail "apt on this machine knows no Debian mirror (a repository of its release, or .../debian, with the component main)"

work=$(mktemp -d "$cache/.$1-XXXXXX")
trap 'rm -rf "$work"' EXIT
mkdir -p "$work"/apt/{lists,archives}/partial "$work"/apt/{parts,preferences} "$work/tree"
: >"$work/apt/status" # nothing counts as installed, so that the C library comes too
signed=""
keyring=/usr/share/keyrings/debian-archive-keyring.gpg
[ ! -r "$keyring" ] || signed="[signed-by=$keyring] "
echo "deb $signed$mirror $release main" >"$work/apt/sources.list"
cat >"$work/apt/apt.conf" <<CONF
Dir::State "$work/apt";
Dir::State::status "$work/apt/status";
Dir::Cache "$work/apt";
Dir::Etc::sourcelist "$work/apt/sources.list";
Dir::Etc::sourceparts "$work/apt/parts";
Dir::Etc::preferences "$work/apt/preferences/none";
Dir::Etc::preferencesparts "$work/apt/preferences";
Dir::Log "$work/apt";
Debug::NoLocking "true";
APT::Sandbox::User "";
APT::Install-Recommends "false";
APT::Default-Release "$release";
Acquire::Languages "none";
Acquire::Retries "3";
CONF
export APT_CONFIG=$work/apt/apt.conf
apt-get update -qq >&2 || fail "no package lists of $release from $mirror"
apt-get install -qq -y --print-uris "${packages[@]}" >"$work/wanted" || fail "$mirror has no ${packages[*]} for $release"
# Compilers at run time (JIT), perl and locales serve tools that no test uses: 200 MB of 400.
awk '{print $2}' "$work/wanted" | grep -Ev '^(libllvm|libz3|perl|libperl|locales)' |
  sed -E 's/^([^_]+)_.*/\1/' >"$work/names"
(cd "$work/apt/archives" && xargs apt-get download -qq <"$work/names" >&2) || fail "could not download from $mirror"
for package in "$work"/apt/archives/*.deb; do dpkg-deb -x "$package" "$work/tree"; done

tree=$work/tree
programs=usr/lib/postgresql/$major
[ -x "$tree/$programs/bin/postgres" ] || fail "postgresql-$major unpacked without $programs/bin/postgres"
rm -f "$tree/$programs"/lib/llvmjit*.so # its library was left out; without it the server goes on without JIT
# Before merged /usr the loader lies in /lib; either way beside the C library it belongs to.
loader=$(cd "$tree" && find usr/lib lib -name 'ld-linux-*.so.*' -path '*-linux-gnu*' 2>/dev/null | head -n 1) || true
[ -n "$loader" ] || fail "$release's C library unpacked without a loader"
libraries=$kept/$(dirname "$loader")
for other in "$tree"/{lib,usr/lib}/*-linux-gnu; do
  [ ! -d "$other" ] || case ":$libraries:" in *":$kept${other#"$tree"}:"*) ;; *) libraries+=":$kept${other#"$tree"}" ;; esac
done
# A program finds its share folder from its own path, so what is started must lie where the program lay.
mv "$tree/$programs/bin" "$tree/$programs/programs"
mkdir "$tree/$programs/bin"
for program in "$tree/$programs"/programs/*; do
  name=$(basename "$program")
  cat >"$tree/$programs/bin/$name" <<RUN
#!/bin/sh
exec $kept/$loader --argv0 "\$0" --library-path $libraries $kept/$programs/programs/$name "\$@"
RUN
  chmod 755 "$tree/$programs/bin/$name"
done
chmod 755 "$tree"
rm -rf "$kept"
mv "$tree" "$kept"
"$bin/postgres" --version >&2 || { rm -rf "$kept"; fail "what $release has does not run on this machine"; }
echo "$bin"
