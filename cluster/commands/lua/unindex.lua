-- Takes topics off a node's list of topics.
-- KEYS  the set of the node's topics
-- ARGV  until when it may be carried out, in ms of server time; then the topics
-- Gives how many were on it; where it came too late, as in enter.lua.
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
if now > tonumber(ARGV[1]) then
  return -now
end
return redis.call('SREM', KEYS[1], unpack(ARGV, 2))
