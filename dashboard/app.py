"""The dashboard's entry: page settings and navigation. Each page is a file in pages/."""

import streamlit as st

st.set_page_config(page_title="Wattledger", page_icon=":material/bolt:", layout="wide")
st.navigation([st.Page("pages/overview.py", title="Overview", default=True)], position="hidden").run()
