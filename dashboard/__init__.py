"""Streamlit pages over the API; no SQL, no database credentials."""
