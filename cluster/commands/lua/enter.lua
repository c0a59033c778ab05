-- Adds members of one node to one topic, and keeps the topic's keys alive.
-- KEYS  the topic's hash node -> count of members; the node's hash connection id -> member
-- ARGV  the node; the most members there may be on all nodes, or -1; time to live of the keys in ms;
--       until when it may be carried out, in ms of server time; then connection id and member, any number of times
--       (none: only the keys are kept alive)
-- Gives 1 where all are in (who was in already needs no place, and is as given now), 0 where at least one found the topic full. Where it
-- came too late it changes nothing and gives the time in ms as a negative number: nobody waits for it any more, or the
-- node's lease may have ended, which stands in another slot.
local node, limit, ttl = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
if now > tonumber(ARGV[4]) then
  return -now
end
local own, counted = redis.pcall('HLEN', KEYS[2]), redis.pcall('HLEN', KEYS[1])
local strange = type(own) == 'table' and own or type(counted) == 'table' and counted
if strange then
  -- A key of another type is none of ours: nobody can enter, and there is nothing to be kept alive.
  return #ARGV == 4 and string.find(strange.err, 'WRONGTYPE', 1, true) and 1 or strange
end
if #ARGV == 4 then
  -- Before all else: a server that is out of memory refuses a script's HSET unless the script has written before, and a
  -- full server is no reason to let live members end.
  for i = 1, 2 do
    if redis.call('PTTL', KEYS[i]) < ttl then
      redis.call('PEXPIRE', KEYS[i], ttl)
    end
  end
end
local others, all_in = 0, 1
if limit >= 0 then
  local counts = redis.call('HGETALL', KEYS[1])
  for i = 1, #counts, 2 do
    if counts[i] ~= node then
      local count = counts[i + 1]
      if #count <= 15 and string.match(count, '^%d+$') then -- what is no count counts nobody
        others = others + tonumber(count)
      end
    end
  end
end
for i = 5, #ARGV, 2 do
  local is_in = redis.call('HEXISTS', KEYS[2], ARGV[i]) == 1
  if is_in or limit < 0 or others + own < limit then
    -- Who left and came back before the leave was carried out is another member: see mark_told.lua.
    redis.call('HSET', KEYS[2], ARGV[i], ARGV[i + 1])
    own = own + (is_in and 0 or 1)
  else
    all_in = 0
  end
end
-- The count is set, not added to: whatever it was, it is right from here on.
if own == 0 then
  redis.call('HDEL', KEYS[1], node)
  return all_in
end
redis.call('HSET', KEYS[1], node, own)
for i = 1, 2 do
  if redis.call('PTTL', KEYS[i]) < ttl then
    redis.call('PEXPIRE', KEYS[i], ttl)
  end
end
return all_in
