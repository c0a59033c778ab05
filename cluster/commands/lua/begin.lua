-- When a session was first seen, by the time of Redis.
--
-- KEYS[1] session   seconds since the epoch, as text
-- ARGV    ttl in ms, counted from the first time
--
-- Result  the seconds, as text; {the seconds} where something else stood in their place, which is overwritten

local began = redis.pcall('GET', KEYS[1])
if type(began) == 'string' and #began <= 22 and (string.match(began, '^%d+%.%d+$') or string.match(began, '^%d+$')) then
  return began
end
if type(began) == 'table' and not string.find(began.err, 'WRONGTYPE', 1, true) then
  return began
end
local strange = began
local time = redis.call('TIME')
began = string.format('%s.%06d', time[1], tonumber(time[2]))
redis.call('SET', KEYS[1], began, 'PX', ARGV[1])
return strange and {began} or began
