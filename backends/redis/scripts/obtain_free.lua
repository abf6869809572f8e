-- The marker: what the server knows about itself, as doubles, struct's '<d', of 8 bytes:  1 the
-- clock when a token was last noted: none was given more than a second after it  9 how far the
-- clock that tokens follow is ahead of the server's  17 when no lease from before the marker was left;
-- and only until that, and the reach of every token, is over:  25 how long it takes from when the
-- marker was written. A client that vouches for a new server writes a number that is long past.
--
-- Tokens follow the clock, so that they grow even after the record was dropped or lost. If the
-- clock was stepped back, they go on from where they were. A quorum does not count on that: there
-- the others remember, and have to agree with this server in one round.
local marker = redis.call('GET', KEYS[2])
local recovered = marker and #marker == 24
local noted, ahead = 0, 0
local notes = true       -- To be written with the next grant,
local went_back = false  -- or at once.
if recovered or marker and #marker == 32 then
  noted, ahead = struct.unpack('<dd', marker)
  if ARGV[4] then
    notes = false
  elseif now < noted then
    ahead, noted, went_back = ahead + noted + 1000001 - now, now, true
  else
    notes = now > noted + 1000000
  end
end

-- The fence rule: max(last + 1, the proposal, held within 10 s of the clock). The proposal only
-- makes the servers of a quorum agree.
local lease, proposed = struct.unpack('<dd', ARGV[3])
if proposed < now + ahead - 10000000 then
  proposed = now + ahead - 10000000
elseif proposed > now + ahead + 10000000 then
  proposed = now + ahead + 10000000
end

-- Before all that obtain.lua may need: the commonest case, in which nobody holds, has reserved or
-- waits, and there is nothing to say of the server. Does exactly what obtain.lua would do; whatever
-- else is the case is left to it. See record.lua for the fields, store.lua for how long they are
-- kept.
if recovered and not notes and not went_back then
  local call = redis.call
  local s = call('HGET', KEYS[1], 's')
  local fence, kept, deadline = 0, 0, 0
  if s then fence, kept, deadline = struct.unpack('<ddd', s) end
  if deadline == 0 and (not s or #s == 64) then
    fence, deadline = proposed > fence and proposed or fence + 1, now + lease
    local needed = (fence - ahead > deadline and fence - ahead or deadline) + 10000000
    local keep = kept < needed and needed + 20000000 or kept
    s = struct.pack('<ddddc32', fence, keep, deadline, lease, ARGV[1])
    call('HSET', KEYS[1], 's', s, 'h', ARGV[2])
    if keep ~= kept then
      call('PEXPIRE', KEYS[1], math.ceil((keep - now) / 1000) + 1000)
    end
    return s
  end
end
