"""The browser view of a map: its data, its page, and a server for both.

Nothing here affects results, and nothing is loaded from a network. `three.min.js` is three.js (MIT): see its header.
"""
