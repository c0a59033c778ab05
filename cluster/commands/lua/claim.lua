-- Claims a node whose lease has ended, to remove its members; also goes on with a claim, and ends it.
-- KEYS  the sorted set of leases (see renew.lua); the set of the dead node's topics; the sorted set of nodes that were
--       claimed -> when, in ms of server time, for those that wake up
-- ARGV  the dead node; length of the claim in ms; time to live of the keys in ms; the end of the caller's own claim as
--       this script gave it, "" at first; how many topics to give; until when it may be carried out, in ms of server
--       time; then topics that are done with
-- Gives {end of the claim, 1 where nobody is to be told else 0, topics ...}; {} where there is nothing to do: the node is
-- alive, or another's, or done with. Nobody is told of what is left under a former name of a node that lives: a server
-- that went back to older data has it.
-- A claimed node cannot renew its lease. A reaper that dies leaves a claim that ends, and the topics not done with.
local node, ttl, own = ARGV[1], tonumber(ARGV[3]), ARGV[4]
local mark = '!' .. node
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
if now > tonumber(ARGV[6]) then
  return {}
end
local claimed = redis.call('ZSCORE', KEYS[1], mark)
if own ~= '' then
  if not claimed or tonumber(claimed) ~= tonumber(own) then
    return {}
  end
else
  local ends = claimed or redis.call('ZSCORE', KEYS[1], node)
  if not ends or tonumber(ends) > now then
    return {}
  end
end

local function lives_on()
  local process = string.match(node, '^(.*%-)%d+$')
  for _, name in ipairs(process and redis.call('ZRANGEBYSCORE', KEYS[1], '(' .. now, '+inf') or {}) do
    if string.sub(name, 1, #process) == process and string.find(name, '^%d+$', #process + 1) then
      return true
    end
  end
  return false
end

redis.call('ZREM', KEYS[1], node)
local is_silent = 0
if own == '' and not redis.call('ZSCORE', KEYS[3], node) then
  if lives_on() then
    is_silent = 1
  else
    redis.call('ZADD', KEYS[3], now, node)
    redis.call('PEXPIRE', KEYS[3], ttl)
    for _, old in ipairs(redis.call('ZRANGEBYSCORE', KEYS[3], '-inf', now - ttl, 'LIMIT', 0, 16)) do
      redis.call('ZREM', KEYS[3], old)
    end
  end
end
if #ARGV > 6 then
  redis.call('SREM', KEYS[2], unpack(ARGV, 7))
end
local topics = redis.call('SRANDMEMBER', KEYS[2], ARGV[5])
if #topics == 0 then
  redis.call('ZREM', KEYS[1], mark)
  return {}
end
local ends = now + tonumber(ARGV[2])
redis.call('ZADD', KEYS[1], ends, mark)
redis.call('PEXPIRE', KEYS[1], ttl)
redis.call('PEXPIRE', KEYS[2], ttl)
local reply = {string.format('%.0f', ends), is_silent}
for _, topic in ipairs(topics) do
  reply[#reply + 1] = topic
end
return reply
