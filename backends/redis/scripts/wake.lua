-- What comes after every step. If its acquisition waits no more, its registration goes; and if the
-- resource became free, the best waiter (priority, then first registration) is woken and, unless it
-- asked for barging, made the successor for a short time, so that nobody of equal or lower priority
-- slips in before it claims. A waiter that was woken before and has not asked for the lock since
-- comes last: it may be dead. Who comes after the one woken is told when to look again, in case
-- that one is dead. Dead ones that are met go.
--
-- The key of the waiting list may hold something of somebody else. Then watch.lua refuses to
-- register, and to all others the list is empty: what is wrong with it must not keep anybody from
-- leaving.
if forgets and waiter then
  call('HDEL', K, 'w:' .. acquisition)
  if redis.pcall('ZREM', K .. ':waiting', sub(waiter, 18, 49) .. acquisition) == 1 then
    waiting = waiting - 1
  end
  waiter, changed = v[3], true
end

local woken, woken_entry
if freed and not handles and successor then
  tell(successor_client, 'H' .. successor .. freed)
elseif freed and not handles and waiting > 0 then
  local W = K .. ':waiting'
  local place, silent, silent_entry, after, after_entry = 0
  repeat
    local found = redis.pcall('ZRANGE', W, place, place + 1)  -- Nothing in an error.
    local entries
    if found[2] then
      entries = call('HMGET', K, 'w:' .. sub(found[1], 33), 'w:' .. sub(found[2], 33))
    elseif found[1] then
      entries = {call('HGET', K, 'w:' .. sub(found[1], 33))}
    end
    for i = 1, #found do
      if after then break end
      local a, entry = sub(found[i], 33), entries[i]
      if a == acquisition then entry = waiter end
      local over, lasts = 0, 0
      if entry then over, lasts = struct.unpack('<dd', entry) end
      if over > now + lasts then  -- The clock was stepped back.
        entry = struct.pack('<d', now + lasts) .. sub(entry, 9)
        if a == acquisition then waiter = entry end
        redis.pcall('HSET', K, 'w:' .. a, entry)  -- If it is refused, the next one does it.
      end
      if over <= now then
        call('HDEL', K, 'w:' .. a)
        waiting, changed = waiting - call('ZREM', W, found[i]), true
      else
        place = place + 1
        if woken then
          if not after then after, after_entry = a, entry end
        elseif sub(entry, 17, 17) == '0' then
          woken, woken_entry = a, entry
        elseif not silent then
          silent, silent_entry = a, entry
        end
      end
    end
  until after or #found < 2
  if not woken then woken, woken_entry = silent, silent_entry end
  if woken then
    local client, reservation = sub(woken_entry, 50, 65), sub(woken_entry, 66, 81)
    changed = true
    if sub(woken_entry, 82, 82) == '0' then
      successor, successor_client = woken, client
      successor_priority, successor_owner = sub(woken_entry, 83, 102), sub(woken_entry, 103)
      successor_length, grace_end, nominated = tonumber(reservation), nil, '1'
      successor_deadline = now + successor_length
      successor_changed = true
    end
    if woken ~= acquisition then tell(client, 'H' .. woken .. freed) end
    if after then
      tell(sub(after_entry, 50, 65),
           string.format('L%s %.0f', after, tonumber(reservation)))
    end
  else
    waiting, changed = 0, true  -- The list may have been lost, which its count has not seen.
  end
end
