-- When a session was first seen, by the time of Redis.
--
-- KEYS[1] session   seconds since the epoch, as text
-- ARGV    ttl in ms, counted from the first time; 0 only to look it up
--
-- Result  the seconds, and the present time in seconds, as text; nil where it is only looked up and not remembered

local time = redis.call('TIME')
local now = string.format('%s.%06d', time[1], tonumber(time[2]))
local began = redis.call('GET', KEYS[1])
if not began then
  if ARGV[1] == '0' then
    return false
  end
  began = now
  redis.call('SET', KEYS[1], began, 'PX', ARGV[1])
end
return {began, now}
