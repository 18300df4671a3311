"""Orders to this node's agent: polled, checked, journalled, carried out for a time and undone. Off by default.

``check`` judges an order, ``power`` is the one thing that can be set, ``journal`` remembers what was found before, ``orders``
carries out and undoes, ``expiry`` sees that it is undone in time, ``channel`` asks the server. An order without a valid signature of this node's own key does nothing.
"""
