"""Who is in a room, on whichever node, by leases in Redis.

A node renews one lease for each namespace, not one for each member. Its members of a topic are one hash, and a second
hash of the topic counts them by node: so counting loads no member, and what a dead node leaves behind is found by its
name. When a lease ends, one of the other nodes claims the dead node, removes its members topic by topic, and says who
they were. A node that finds its own lease gone (it was frozen, or the server lost its data) begins again under a new
name, with all the members it has.

What this node knows of its own members is right, and Redis is made to agree: topic by topic every few minutes, and all
of them at once after anything that may have cost Redis some of it.
"""
