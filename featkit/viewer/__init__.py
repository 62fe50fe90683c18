"""A map to look at in a browser: what its page asks for, the page, and the server that hands out both.

Nothing here decides a result, and nothing is loaded from a network. `three.min.js` is three.js (MIT): see its header.
"""
