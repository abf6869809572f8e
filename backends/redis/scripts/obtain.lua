-- Obtain. Invariant: at any time at most one owner holds, and its token is larger than that of
-- every hold before it. A thief never replaces a live holder that was not warned: it becomes the
-- successor, and is granted only what is free, or, with a grace, what it has reserved for that long.
--
-- ARGV: 2 client, 16; priority, 20; preemptible ('1'/'0'), 1; owner   3 numbers as in the record:
-- lease, proposed token, the longest lease; and if it may reserve: reservation lease, grace or -1,
-- and behind them reserve below (a priority), 20   4 only for a quorum that reads the fence back: how
-- far the servers' clocks are apart
-- Reply: the first 64 bytes of s: obtained, for all of the lease; {2 re-entered, token, left}
-- {3 reserved, left, grace left or -1, holder's owner, its priority} {4 denied, left, owner,
-- priority} {5 recovering, left}. A quorum gets {1 obtained, token, left, 1}, and a 1 behind 2, if
-- the fence is lost; and the fence, or 0, behind 3 and 4.
local reads_fence_back, fence_lost, lost_up_to = ARGV[4], false, 0
local denied, grants = false, false
repeat
  local info, numbers = ARGV[2], ARGV[3]
  local priority, owner = sub(info, 17, 36), sub(info, 38)

  -- The marker says that this server has kept its data. If there is none, nothing is granted until
  -- no lease from before the loss is left, and until the reach of every token is over as well only
  -- to those who find out by themselves which tokens were given.
  local ready, recovery
  local written = marker and not went_back
  if recovered then
    ready = struct.unpack('<d', marker, 17)
  elseif not marker then
    recovery = struct.unpack('<d', numbers, 17)
    ready, noted = now + recovery, now
  elseif #marker == 32 then
    ready, recovery = struct.unpack('<dd', marker, 17)
    if ready > now + recovery then
      -- The clock was stepped back. What is left is never more than the whole.
      if reads_fence_back then ahead = ahead + ready - now - recovery end
      ready, written = now + recovery, false
    end
  else
    ready = tonumber(marker)
    if not ready then return redis.error_reply('WRONGTYPE marker') end
    recovery = ready > now and ready - now or 0
  end
  if not written then
    local set = redis.pcall('SET', KEYS[2], struct.pack('<ddd', noted, ahead, ready) ..
                                            (recovery and struct.pack('<d', recovery) or ''))
    if set.err and not marker then return set end
  end
  if reads_fence_back then
    -- No token from before the loss is above this. A hold of those days may have one below it, and
    -- it keeps that however long it lasts, so the token and not the time says whether the fence was
    -- lost.
    lost_up_to = ready + ahead + SLACK + tonumber(reads_fence_back)
  end
  if recovery then
    local grants_from = ready + 2 * SLACK
    local over = grants_from + (reads_fence_back or 0)
    if reads_fence_back then grants_from = ready end
    if grants_from > now then reply = {5, grants_from - now} break end
    if over > now then fence_lost = true else recovery, notes = nil, true end
  end
  if notes then
    notes = struct.pack('<ddd', reads_fence_back and noted or now, ahead, ready) ..
            (recovery and struct.pack('<d', recovery) or '')
  end

  local may_succeed = not successor or successor == acquisition or priority > successor_priority
  if not handles then
    if may_succeed then
      grants = true
    else
      denied, reply = true, {4, successor_deadline - now, successor_owner, successor_priority}
    end
    break
  end

  local holder_priority, holder_owner = sub(holder, 1, 20), sub(holder, 22)
  local preemptible = sub(holder, 21, 21)
  local same_owner = at
  if owner ~= '' then same_owner = holder_owner == owner end
  if same_owner then
    if not at then
      handles, changed = handles .. 'h' .. acquisition .. ':' .. sub(info, 1, 16), true
    end
    if priority > holder_priority then holder_priority = priority end
    if sub(info, 37, 37) == '0' then preemptible = '0' end
    local updated = holder_priority .. preemptible .. holder_owner
    if updated ~= holder then holder, changed = updated, true end
    -- It could not reserve this hold any more.
    if successor and (successor_priority <= holder_priority or preemptible == '0') then
      tell(successor_client, 'D' .. successor)
      tell_all(handles, 'N', '')
      successor, changed = false, true
    end
    forgets = true
    reply = {2, fence, deadline - now}
    if fence <= lost_up_to then reply[4] = 1 end
    break
  end

  if preemptible == '0' or #numbers == 24 or holder_priority >= priority or
     holder_priority >= sub(numbers, 41) or not may_succeed then
    denied, reply = true, {4, deadline - now, holder_owner, holder_priority}
    break
  end
  local reservation, grace = struct.unpack('<dd', numbers, 25)
  if grace >= 0 and successor == acquisition and grace_end and grace_end <= now then
    tell_all(handles, 'H', 's')
    grants = true
    break
  end
  if successor ~= acquisition then
    if successor then tell(successor_client, 'D' .. successor) end
    successor, successor_client = acquisition, sub(info, 1, 16)
    successor_owner, successor_priority = owner, priority
    grace_end, nominated = nil, '0'
  end
  successor_deadline, successor_length = now + reservation, reservation
  successor_changed, changed = true, true
  -- The grace runs from the first reservation that asked for one; polling does not move it.
  if grace >= 0 and not grace_end then grace_end, grace_length = now + grace, grace end
  local grace_left = grace_end and grace_end - now or -1
  -- Events may be lost, so each poll tells the holder again.
  tell_all(handles, 'Y', string.format(' %.0f %s %.0f', grace_left, priority,
                                       successor_deadline - now))
  denied, reply = true, {3, deadline - now, grace_left, holder_owner, holder_priority}
until true

if grants then
  if successor and successor ~= acquisition then tell(successor_client, 'D' .. successor) end
  if notes then
    local set = redis.pcall('SET', KEYS[2], notes)
    if set.err then return set end
  end
  fence, deadline, length = proposed > fence and proposed or fence + 1, now + lease, lease
  handles = 'h' .. acquisition .. ':' .. sub(ARGV[2], 1, 16)
  holder, successor = sub(ARGV[2], 17), false
  changed, freed, forgets = true, false, true
  if fence <= lost_up_to then reply = {1, fence, lease, 1} end
elseif denied then
  -- If it was woken, it is alive.
  if waiter and sub(waiter, 17, 17) == '1' then
    waiter, changed = sub(waiter, 1, 16) .. '0' .. sub(waiter, 18), true
  end
  -- A record that was dropped had no token above that time.
  if reads_fence_back then
    reply[#reply + 1] = fence_lost and 0 or math.max(fence, now + ahead - SLACK)
  end
end
