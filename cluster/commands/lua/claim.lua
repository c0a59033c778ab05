-- Claims a node whose lease has ended, to remove its members; also goes on with a claim, and ends it.
-- KEYS  the sorted set of leases (see renew.lua); the set of the dead node's topics
-- ARGV  the dead node; length of the claim in ms; time to live of the keys in ms; the end of the caller's own claim as
--       this script gave it, "" at first; how many topics to give; until when it may be carried out, in ms of server
--       time; the sorted set of nodes that were claimed -> when, in ms of server time, for those that wake up: it may be
--       missing, and while the slot migrates it is done without; then topics that are done with
-- Gives {end of the claim, 1 where nobody is to be told else 0, topics ...}; {} where there is nothing to do: the node is
-- alive, or another's, or done with. Nobody is told of what is left under a former name of a node that lives: a server
-- that went back to older data has it.
-- A claimed node cannot renew its lease. A reaper that dies leaves a claim that ends, and the topics not done with.
local node, ttl, own, woken = ARGV[1], tonumber(ARGV[3]), ARGV[4], ARGV[7]
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

-- The mark comes first, and a set is not asked after it was emptied: it is gone then, and while a slot migrates what is
-- missing cannot be reached.
-- PEXPIRE comes before all, for a server that is out of memory: see renew.lua.
local ends = now + tonumber(ARGV[2])
redis.call('PEXPIRE', KEYS[1], ttl)
redis.call('ZADD', KEYS[1], ends, mark)
redis.call('ZREM', KEYS[1], node)
local is_silent = 0
if own == '' and type(redis.pcall('ZSCORE', woken, node)) ~= 'string' then
  if lives_on() then
    is_silent = 1
  else
    redis.pcall('ZADD', woken, now, node)
    redis.pcall('PEXPIRE', woken, ttl)
    for _, old in ipairs(redis.pcall('ZRANGEBYSCORE', woken, '-inf', now - ttl, 'LIMIT', 0, 16)) do
      redis.pcall('ZREM', woken, old)
    end
  end
end
local finished = {}
for i = 8, #ARGV do
  finished[ARGV[i]] = true
end
local most = tonumber(ARGV[5])
local listed = redis.pcall('SRANDMEMBER', KEYS[2], most + #ARGV - 7)
if listed.err then
  if not string.find(listed.err, 'WRONGTYPE', 1, true) then
    return listed
  end
  listed = {} -- a key of another type is none of ours
end
local topics = {}
for _, topic in ipairs(listed) do
  if not finished[topic] and #topics < most then
    topics[#topics + 1] = topic
  end
end
if #listed > 0 and #ARGV > 7 then
  redis.call('SREM', KEYS[2], unpack(ARGV, 8))
end
if #topics == 0 then
  redis.call('ZREM', KEYS[1], mark)
  return {}
end
redis.call('PEXPIRE', KEYS[2], ttl)
table.insert(topics, 1, is_silent)
table.insert(topics, 1, string.format('%.0f', ends))
return topics
