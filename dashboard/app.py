"""The dashboard's entry: page settings and navigation. Each page is a file in pages/."""

from pathlib import Path

import streamlit as st

# A file of ours: a named icon would be fetched from the internet by each reader's browser.
ICON = Path(__file__).with_name("icon.svg")

st.set_page_config(page_title="Wattledger", page_icon=str(ICON), layout="wide")
st.navigation([st.Page("pages/overview.py", title="Overview", default=True)], position="hidden").run()
