-- When a session was first seen, by the time of Redis.
--
-- KEYS[1] session   seconds since the epoch, as text
-- ARGV    ttl in ms, counted from the first time
--
-- Result  the seconds, as text

local began = redis.call('GET', KEYS[1])
if began then
  return began
end
local time = redis.call('TIME')
began = string.format('%s.%06d', time[1], tonumber(time[2]))
redis.call('SET', KEYS[1], began, 'PX', ARGV[1])
return began
