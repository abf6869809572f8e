-- What every step ends with: it stores what changed and tells those concerned. Invariants: the
-- record outlives every deadline in it and the waiting list, and it is kept until SLACK after the
-- clock that tokens follow has reached the fence, from when on that clock alone makes tokens larger
-- (see obtain_free.lua): a fence that a quorum has raised far ahead keeps it for as long. If the
-- first write is refused (no memory, read-only), nothing has been written.
if changed then
  -- The record is kept for longer than it must, so that not every step has to say for how long: for
  -- 20 s, and once it is free for up to 90, which a lease of a minute does not exceed.
  local keep = kept
  local needed = fence
  if fence > now + SLACK then
    -- If the clock was ever stepped back, tokens are ahead of it.
    local marker = redis.pcall('GET', string.match(K, '^[^{]*') .. 'marker')
    if type(marker) == 'string' and (#marker == 24 or #marker == 32) then
      needed = fence - struct.unpack('<d', marker, 9)
    end
  end
  if needed < now then needed = now end
  if handles and deadline > needed then needed = deadline end
  if successor and successor_deadline > needed then needed = successor_deadline end
  needed = needed + SLACK
  if waiting > 0 and list_kept > needed then needed = list_kept end
  if kept < needed then
    keep = needed + 20000000
  elseif kept > needed + 90000000 then
    local is_free = not handles and not successor and waiting <= 0
    keep = is_free and needed or needed + 20000000
  end

  local fields = {'s', ''}
  local n = 2
  more = 0
  if handles then
    first_handle = sub(handles, 2, 33)
    if handles ~= stored_handles or holder ~= stored_holder then
      fields[3], fields[4] = 'h', sub(handles, 35, HANDLE) .. holder
      n = 4
      if #handles > HANDLE then fields[5], fields[6], n = 'hh', sub(handles, HANDLE + 1), 6 end
    end
    if #handles > HANDLE then more = 2 end
  else
    deadline = 0
  end
  if successor then
    more = more + 1
    if successor_changed then
      fields[n + 1], fields[n + 2] = 'sa', successor .. successor_client
      fields[n + 3], fields[n + 4] =
          'si', struct.pack('<dddd', successor_deadline, successor_length, grace_end or 0,
                            grace_length or 0) .. nominated .. successor_priority .. successor_owner
      n = n + 4
    end
  end
  local s = struct.pack('<ddddc32', fence, keep, deadline, length, first_handle or acquisition)
  reply = reply or s  -- See obtain.lua.
  if waiting > 0 or more > 0 then
    s = s .. struct.pack('<dddB', waiting, list_kept, registered, more)
  end
  fields[2] = s
  if waiter ~= v[3] then
    fields[n + 1], fields[n + 2] = 'w:' .. acquisition, waiter
    n = n + 2
  end
  if woken then
    fields[n + 1], fields[n + 2] =
        'w:' .. woken, sub(woken_entry, 1, 16) .. '1' .. sub(woken_entry, 18)
  end
  local stored = redis.pcall('HSET', K, unpack(fields))
  if type(stored) ~= 'number' then
    -- A full server refuses HSET and ZADD, but only as a script's first write. Giving something up
    -- must not fail for that, so here a removal comes first, of a field that no record has.
    if not (stored_handles and (not handles or #handles < #stored_handles)) and
       not (stored_successor and not successor and handles == stored_handles) then
      return stored
    end
    call('HDEL', K, '-')
    call('HSET', K, unpack(fields))
  end
  if keep ~= kept then call('PEXPIRE', K, math.ceil((keep - now) / 1000) + 1000) end
end

-- Events are hints: a user who may not publish still gets locks.
if notices[1] then
  local channels = string.match(K, '^[^{]*') .. 'client:'
  for i = 1, #notices do redis.pcall('PUBLISH', channels .. notices[i][1], notices[i][2]) end
end
return reply
