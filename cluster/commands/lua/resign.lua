-- Gives a node's lease back.
-- KEYS  the sorted set of leases (see renew.lua)
-- ARGV  the node; the set of the node's topics, and the sorted set of nodes that were claimed: both may be missing
redis.pcall('UNLINK', ARGV[2])
if redis.call('ZREM', KEYS[1], ARGV[1]) == 1 and redis.pcall('EXISTS', KEYS[1]) == 0 then
  redis.pcall('UNLINK', ARGV[3])
end
return 1
