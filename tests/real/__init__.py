"""The line on published measurements: imported, closed, compared with what their publishers and an independent sum say."""
