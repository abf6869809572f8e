-- What every step begins with: the record is loaded, and what is over dropped. Then come the step's
-- own text, wake.lua and store.lua. A step runs from beginning to end with nothing else in between,
-- so the order inside does not matter to others. All is in one piece, since functions that share so
-- many variables cost Lua more than what they do.
--
-- KEYS: 1 the record, a hash   2 the marker, for obtain alone
-- ARGV: 1 the acquisition   2... the step's own
--
-- Fields of the record:
--   s   numbers as doubles, struct's '<d', of 8 bytes:  1 the fence, the last token ever given
--       9 until when the server keeps the record   17 deadline of the hold, 0 if nobody holds
--       25 its length: the longest that it was granted or extended for   33 its first handle's
--       acquisition, 32;  and only if there is more to say:  65 how many wait   73 until when the
--       server keeps the waiting list   81 how many registered since the first of those who wait:
--       their order   89 a byte: 1 if there is a successor, 2 if hh counts, or both
--   h   the hold: client of its first handle, 16; priority, 20; preemptible ('1'/'0'), 1; owner
--   hh  its further handles, in order of entry
--   sa  the successor: acquisition, 32; client, 16
--   si  its deadline and length, end of grace (0 without) and length of that, '<d', 8 each; '1' if
--       it was nominated from the waiting list, 1; priority, 20; owner
--   w:ACQUISITION  a waiter: see watch.lua
--
-- Of these s alone says what there is: the rest, its own acquisition included, may be left over
-- from a hold or a successor that is gone, and is not read then. The token of a hold is the fence:
-- only a grant, which follows a hold's end, and the confirmation of the hold itself raise it. What
-- every hold needs takes at most 64 bytes a field, so that the hash is one small block as long as
-- nobody reserves or waits, and no owner has a long name.
--
-- The server's clock may be stepped back. A deadline that lies further ahead than its own length is
-- then brought to now + length, and stored so: what is truly left is never more than that.
--
-- Acquisitions are 32 hexadecimal digits, clients 16; a handle is 'h' acquisition ':' client. Times
-- are microseconds of the server's clock. Priorities are 20 decimal digits that compare as strings
-- (the int64 + 2^63): Lua's numbers cannot hold an int64. Redis writes a number that it is given
-- with all its digits; '..' rounds it to 14, so what is joined is formatted first.
local K, acquisition = KEYS[1], ARGV[1]
local call, sub = redis.call, string.sub

local SLACK = 10000000  -- How far a proposed token may be from the server's clock: 10 s.
local HANDLE = 50

local v = call('HMGET', K, 's', 'h', 'w:' .. acquisition)
local fence, kept, deadline, length, first_handle = 0, 0, 0, 0
local waiting, list_kept, registered, more = 0, 0, 0, 0
if v[1] then
  fence, kept, deadline, length, first_handle = struct.unpack('<ddddc32', v[1])
  if #v[1] > 64 then
    waiting, list_kept, registered, more = struct.unpack('<dddB', v[1], 65)
  end
end
local handles, holder = false
if deadline > 0 then
  handles, holder = 'h' .. first_handle .. ':' .. sub(v[2], 1, 16), sub(v[2], 17)
  if more >= 2 then handles = handles .. call('HGET', K, 'hh') end
end
local successor, successor_client, successor_deadline, successor_length = false
local grace_end, grace_length
local successor_priority, successor_owner, nominated
if more % 2 == 1 then
  local w = call('HMGET', K, 'sa', 'si')
  local info = w[2]
  successor, successor_client = sub(w[1], 1, 32), sub(w[1], 33)
  successor_deadline, successor_length, grace_end, grace_length = struct.unpack('<dddd', info)
  if grace_end == 0 then grace_end = nil end
  nominated, successor_priority, successor_owner =
      sub(info, 33, 33), sub(info, 34, 53), sub(info, 54)
end
local waiter = v[3]  -- This acquisition's own registration.

-- For wake.lua and store.lua.
local stored_handles, stored_holder, stored_successor = handles, holder, successor
local changed = false            -- Anything of the record,
local successor_changed = false  -- and in particular this.
local forgets = false            -- The acquisition waits no more.
local freed = false              -- Became free, and why: 'r' released, 'x' expired, 's' stolen.
local reply
local notices = {}

local function tell(client, message) notices[#notices + 1] = {client, message} end

local function tell_all(holders, kind, rest)
  for a, client in string.gmatch(holders, 'h(%x+):(%x+)') do tell(client, kind .. a .. rest) end
end

if handles and deadline > now + length then deadline, changed = now + length, true end
if successor then
  if successor_deadline > now + successor_length then
    successor_deadline, successor_changed, changed = now + successor_length, true, true
  end
  if grace_end and grace_end > now + grace_length then
    grace_end, successor_changed, changed = now + grace_length, true, true
  end
end
if handles and deadline <= now then
  tell_all(handles, 'H', 'x')
  handles, changed, freed = false, true, 'x'
end
if successor and successor_deadline <= now then
  tell(successor_client, 'D' .. successor)
  successor, changed = false, true
  if handles then tell_all(handles, 'N', '') else freed = freed or 'r' end
end

local at = handles and string.find(handles, 'h' .. acquisition, 1, true)  -- Where its handle is.
