-- What every step shares: the record is loaded and expired before the step's own text, and
-- finish() stores it and tells others after it. A step runs from beginning to end with nothing else
-- in between, so the order inside does not matter to others; if the first write is refused (no
-- memory, read-only), nothing has been written.
--
-- KEYS: 1 the record, a hash   2 the waiting list, a sorted set   3 the marker
-- ARGV: 1 the prefix of the clients' channels   2 the acquisition   3... the step's own
--
-- Fields of the record:
--   f                  the fence: the last token ever given
--   ho hh hp hx ht hd  holder: owner, handles, priority, preemptible ('1'/'0'), token, deadline
--   sa so sc sp sd sg  successor: acquisition, owner, client, priority, deadline, end of grace (''
--                      without)
--   sn                 '1' if the successor was nominated from the waiting list
--   q                  how many waiters ever registered: their order
--   wd                 the latest deadline of any waiter's registration
--   w:ACQUISITION      a waiter: see watch.lua
--
-- Acquisitions are 32 hexadecimal digits, clients 16, times microseconds of the server's clock.
-- Priorities are 20 decimal digits that compare as strings (the int64 + 2^63): Lua's numbers cannot
-- hold an int64. Handles are 'h' acquisition ':' client, 50 bytes each, in order of entry.
-- Numbers are formatted by text() alone: '..' would round them to 14 digits.
local K, W = KEYS[1], KEYS[2]
local acquisition = ARGV[2]

local SLACK = 10000000  -- How far a proposed token may be from the server's clock: 10 s.
local HANDLE = 50

local v = redis.call('HMGET', K, 'f', 'ho', 'hh', 'hp', 'hx', 'ht', 'hd', 'sa', 'so', 'sc', 'sp',
                     'sd', 'sg', 'sn', 'wd', 'w:' .. acquisition)
local fence = tonumber(v[1]) or 0
local holder_owner, handles, holder_priority, preemptible = v[2], v[3], v[4], v[5]
local token, deadline = tonumber(v[6]), tonumber(v[7])
local successor, successor_owner, successor_client, successor_priority = v[8], v[9], v[10], v[11]
local successor_deadline, grace_end = tonumber(v[12]), tonumber(v[13])
local nominated, waiters_until = v[14], tonumber(v[15]) or 0
local waiter = v[16]  -- This acquisition's own registration.

local stored_holder, stored_successor = handles, successor
local holder_changed, successor_changed, fence_changed = false, false, false
local notices = {}
local freed = false   -- Became free, and why: 'r' released, 'x' expired, 's' stolen.
local claimer = false -- The waiter that finish() woke.

local function text(number) return string.format('%.0f', number) end

local function tell(client, message) notices[#notices + 1] = {client, message} end

local function tell_holder(kind, rest)
  for handle, client in string.gmatch(handles, 'h(%x+):(%x+)') do
    tell(client, kind .. handle .. rest)
  end
end

local function handle_at(a) return handles and string.find(handles, 'h' .. a, 1, true) end

local function left(time) return time and time - now or -1 end

local function displace()
  tell(successor_client, 'D' .. successor)
  successor, successor_changed = false, true
end

local function withdraw_reservation()
  successor, successor_changed = false, true
  if handles then tell_holder('N', '') else freed = freed or 'r' end
end

local function end_hold(why)
  if why ~= 'r' then tell_holder('H', why) end
  handles, holder_changed, freed = false, true, why
end

local function yield_notice()
  return ' ' .. text(left(grace_end)) .. ' ' .. successor_priority .. ' ' ..
         text(left(successor_deadline))
end

-- The key of the waiting list may hold something of somebody else. Then watch.lua refuses to
-- register, and to all others the list is empty: what is wrong with it must not keep anybody from
-- leaving.
local function forget_waiter(a, entry)
  redis.call('HDEL', K, 'w:' .. a)
  redis.pcall('ZREM', W, string.sub(entry, 1, 36) .. a)
end

-- Every step first drops a holder or successor whose deadline is over.
if handles and deadline <= now then end_hold('x') end
if successor and successor_deadline <= now then
  tell(successor_client, 'D' .. successor)
  withdraw_reservation()
end

-- The waiter at a place of the order, counted from 0, with its entry. Dead ones on the way go.
local function waiter_at(place)
  while true do
    local member = redis.pcall('ZRANGE', W, place, place)[1]  -- None in an error.
    if not member then return end
    local a = string.sub(member, 37)
    local entry = redis.call('HGET', K, 'w:' .. a)
    if entry and tonumber(string.sub(entry, 37, 52)) > now then return a, entry end
    redis.call('ZREM', W, member)
    redis.call('HDEL', K, 'w:' .. a)
  end
end

-- Wakes the best waiter (priority, then first registration) and, unless it asked for barging, makes
-- it the successor for a short time, so that nobody of equal or lower priority slips in before it
-- claims. A waiter that was woken before and has not asked for the lock since comes last: it may be
-- dead. Who comes after the one woken is told when to look again, in case that one is dead.
local function nominate()
  local place, best, best_entry, silent, silent_entry, after = 0
  while not after do
    local a, entry = waiter_at(place)
    if not a then break end
    place = place + 1
    if best then
      after = {string.sub(entry, 71, 86), a}
    elseif string.sub(entry, 70, 70) == '0' then
      best, best_entry = a, entry
    elseif not silent then
      silent, silent_entry = a, entry
    end
  end
  if not best then best, best_entry = silent, silent_entry end
  if not best then return end
  claimer = best
  local reservation = tonumber(string.sub(best_entry, 53, 68))
  local client = string.sub(best_entry, 71, 86)
  redis.call('HSET', K, 'w:' .. best,
             string.sub(best_entry, 1, 69) .. '1' .. string.sub(best_entry, 71))
  if string.sub(best_entry, 69, 69) == '0' then
    successor, successor_owner, successor_client = best, string.sub(best_entry, 107), client
    successor_priority = string.sub(best_entry, 87, 106)
    successor_deadline, grace_end, nominated = now + reservation, nil, '1'
    successor_changed = true
  end
  if best ~= acquisition then tell(client, 'H' .. best .. freed) end
  if after then tell(after[1], 'L' .. after[2] .. ' ' .. text(reservation)) end
end

-- Stores what changed and tells those concerned. The record outlives every deadline in it, and the
-- fence by SLACK: from then on the clock alone makes tokens larger (see obtain.lua).
local function finish(reply)
  if freed and not handles then
    if successor then tell(successor_client, 'H' .. successor .. freed) else nominate() end
  end
  if holder_changed or successor_changed or fence_changed then
    if not handles and stored_holder then
      redis.call('HDEL', K, 'ho', 'hh', 'hp', 'hx', 'ht', 'hd')
    end
    if not successor and stored_successor then
      redis.call('HDEL', K, 'sa', 'so', 'sc', 'sp', 'sd', 'sg', 'sn')
    end
    if handles and holder_changed then
      redis.call('HSET', K, 'f', text(fence), 'ho', holder_owner, 'hh', handles,
                 'hp', holder_priority, 'hx', preemptible, 'ht', text(token),
                 'hd', text(deadline))
    end
    if successor and successor_changed then
      redis.call('HSET', K, 'sa', successor, 'so', successor_owner, 'sc', successor_client,
                 'sp', successor_priority, 'sd', text(successor_deadline),
                 'sg', grace_end and text(grace_end) or '', 'sn', nominated)
    end
    local keep = math.max(now, fence, waiters_until, handles and deadline or 0,
                          successor and successor_deadline or 0) + SLACK - now
    redis.call('PEXPIRE', K, text(math.ceil(keep / 1000) + 1000))
  end
  -- Events are hints: a user who may not publish still gets locks.
  for i = 1, #notices do redis.pcall('PUBLISH', ARGV[1] .. notices[i][1], notices[i][2]) end
  return reply
end
