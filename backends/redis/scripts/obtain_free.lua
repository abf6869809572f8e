-- The fence rule. Tokens follow the clock, so that they grow even after the record was dropped or
-- lost: max(last + 1, the proposal, held within 10 s of the server's clock). The proposal only
-- makes the servers of a quorum agree.
local lease, proposed = struct.unpack('<dd', ARGV[3])
if proposed < now - 10000000 then
  proposed = now - 10000000
elseif proposed > now + 10000000 then
  proposed = now + 10000000
end

-- Before all that obtain.lua may need: the commonest case, in which nobody holds, has reserved or
-- waits, and the server has long kept its data. Does exactly what obtain.lua would do; whatever else
-- is the case is left to it. See record.lua for the fields, store.lua for how long they are kept.
do
  local call = redis.call
  local s = call('HGET', KEYS[1], 's')
  local fence, kept, deadline = 0, 0, 0
  if s then fence, kept, deadline = struct.unpack('<ddd', s) end
  if deadline == 0 and (not s or #s == 56) then
    local ready = tonumber(call('GET', KEYS[2]))
    if ready and ready + 20000000 + (ARGV[4] or 0) < now then
      fence, deadline = proposed > fence and proposed or fence + 1, now + lease
      local needed = (fence > deadline and fence or deadline) + 10000000
      local keep = kept < needed and needed + 20000000 or kept
      s = struct.pack('<dddc32', fence, keep, deadline, ARGV[1])
      call('HSET', KEYS[1], 's', s, 'h', ARGV[2])
      if keep ~= kept then
        call('PEXPIRE', KEYS[1], math.ceil((keep - now) / 1000) + 1000)
      end
      return s
    end
  end
end
