#!/bin/sh
# Makes the passwords that compose.yaml mounts, once: a file that is there is left alone.
# The folder is its owner's alone; the files in it can be read by the users inside the containers, who are not that owner.
#   ./secrets.sh [FOLDER]          default: secrets beside this script
set -eu
folder=${1:-$(dirname "$0")/secrets}
umask 077
mkdir -p "$folder"
chmod 0700 "$folder"

keep() { # keep NAME: standard input becomes that file, unless it is there
  if [ -s "$folder/$1" ]; then
    cat >/dev/null
    return
  fi
  cat >"$folder/$1.partial"
  chmod 0444 "$folder/$1.partial"
  mv "$folder/$1.partial" "$folder/$1"
}

password() { od -An -N24 -tx1 /dev/urandom | tr -d ' \n'; }

password | keep postgres_password
password | keep wattledger_password
password | keep serve_password
password | keep worker_password
password | keep backup_password
printf 'postgresql://wattledger:%s@db:5432/wattledger' "$(cat "$folder/wattledger_password")" | keep database_url
printf 'postgresql://wattledger_serve_login:%s@db:5432/wattledger' "$(cat "$folder/serve_password")" | keep serve_database_url
printf 'postgresql://wattledger_worker_login:%s@db:5432/wattledger' "$(cat "$folder/worker_password")" | keep worker_database_url
printf 'postgresql://wattledger_backup:%s@db:5432/wattledger' "$(cat "$folder/backup_password")" | keep backup_database_url
# Filled by you (docs/deployment.md); made here, because `>` would give it the caller's umask, and under 077 no container could read it.
[ -e "$folder/dashboard_token" ] || : >"$folder/dashboard_token"
chmod 0644 "$folder/dashboard_token"
echo "$folder: passwords of postgres, wattledger, serve, worker, backup; URLs of all but postgres"
