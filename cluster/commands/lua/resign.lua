-- Gives a node's lease back.
-- KEYS  the sorted set of leases (see renew.lua); the set of the node's topics; the sorted set of nodes that were claimed
-- ARGV  the node
redis.call('UNLINK', KEYS[2])
redis.call('ZREM', KEYS[1], ARGV[1])
if redis.call('EXISTS', KEYS[1]) == 0 then
  redis.call('UNLINK', KEYS[3])
end
return 1
