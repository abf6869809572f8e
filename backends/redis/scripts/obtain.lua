-- Obtain. Invariant: at any time at most one owner holds, and its token is larger than that of
-- every hold before it. A thief never replaces a live holder that was not warned: it becomes the
-- successor, and is granted only what is free, or, with a grace, what it has reserved for that long.
--
-- ARGV: 3 client   4 owner   5 priority   6 preemptible ('1'/'0')   7 lease   8 reserve below (a
-- priority, '' for never)   9 reservation lease   10 grace ('' for none)   11 proposed token
-- 12 the longest lease   13 for a quorum that reads the fence back: how far the servers' clocks are
-- apart; '' for others
-- Reply: {1 obtained, token, left} {2 re-entered, token, left} {3 reserved, left, grace left or -1,
-- holder's owner, its priority} {4 denied, left, owner, priority} {5 recovering, left}. A quorum gets
-- a 1 behind 1 and 2 if the fence is lost, and the fence, or 0, behind 3 and 4.
local client, owner, priority = ARGV[3], ARGV[4], ARGV[5]
local reads_fence_back, fence_lost, lost_up_to = ARGV[13] ~= '', false, 0

-- The marker says that this server has kept its data; it is the time when no lease from before the
-- loss was left. Until then nothing is granted, and until the reach of every token is over as well
-- only to those who find out by themselves which tokens were given.
local ready = redis.call('GET', KEYS[3])
if not ready then
  ready = text(now + tonumber(ARGV[12]))
  redis.call('SET', KEYS[3], ready)
end
ready = tonumber(ready)
if reads_fence_back then
  if ready > now then return finish({5, ready - now}) end
  fence_lost = ready + 2 * SLACK + tonumber(ARGV[13]) > now
  -- No token from before the loss is above this. A hold of those days may have one below it, and
  -- it keeps that however long it lasts, so the token and not the time says whether the fence was
  -- lost.
  lost_up_to = ready + SLACK + tonumber(ARGV[13])
elseif ready + 2 * SLACK > now then
  return finish({5, ready + 2 * SLACK - now})
end

-- A record that was dropped had no token above that time.
local function with_fence(reply)
  if reads_fence_back then
    reply[#reply + 1] = fence_lost and 0 or math.max(fence, now - SLACK)
  end
  return reply
end

local function with_loss(reply)
  if token <= lost_up_to then reply[#reply + 1] = 1 end
  return reply
end

local function displace_other()
  if successor and successor ~= acquisition then displace() end
end

-- The fence rule. Tokens follow the clock, so that they grow even after the record was dropped or
-- lost: max(last + 1, the proposal, held within SLACK of the server's clock). The proposal only
-- makes the servers of a quorum agree.
local function grant()
  displace_other()
  if successor then successor, successor_changed = false, true end
  fence = math.max(fence + 1, math.min(math.max(tonumber(ARGV[11]), now - SLACK), now + SLACK))
  holder_owner, handles = owner, 'h' .. acquisition .. ':' .. client
  holder_priority, preemptible, token, deadline = priority, ARGV[6], fence, now + tonumber(ARGV[7])
  holder_changed, freed = true, false
  if waiter then forget_waiter(acquisition, waiter) end
  return finish(with_loss({1, token, left(deadline)}))
end

-- It was woken, and it is alive.
local function note_that_it_asks()
  if waiter and string.sub(waiter, 70, 70) == '1' then
    redis.call('HSET', K, 'w:' .. acquisition,
               string.sub(waiter, 1, 69) .. '0' .. string.sub(waiter, 71))
  end
end

local function denied()
  note_that_it_asks()
  if handles then
    return finish(with_fence({4, left(deadline), holder_owner, holder_priority}))
  end
  return finish(with_fence({4, left(successor_deadline), successor_owner, successor_priority}))
end

local same_owner
if owner == '' then
  same_owner = handle_at(acquisition)
else
  same_owner = handles and holder_owner == owner
end
if same_owner then
  if not handle_at(acquisition) then
    handles, holder_changed = handles .. 'h' .. acquisition .. ':' .. client, true
  end
  if priority > holder_priority then holder_priority, holder_changed = priority, true end
  if preemptible == '1' and ARGV[6] == '0' then preemptible, holder_changed = '0', true end
  -- It could not reserve this hold any more.
  if successor and (successor_priority <= holder_priority or preemptible == '0') then
    displace()
    tell_holder('N', '')
  end
  if waiter then forget_waiter(acquisition, waiter) end
  return finish(with_loss({2, token, left(deadline)}))
end

local may_succeed = not successor or successor == acquisition or priority > successor_priority
if not handles then
  if not may_succeed then return denied() end
  return grant()
end

local may_reserve = preemptible == '1' and ARGV[8] ~= '' and holder_priority < priority and
                    holder_priority < ARGV[8]
if not may_reserve or not may_succeed then return denied() end
if ARGV[10] ~= '' and successor == acquisition and grace_end and grace_end <= now then
  end_hold('s')
  return grant()
end
note_that_it_asks()
if successor ~= acquisition then
  displace_other()
  successor, successor_owner, successor_client, successor_priority =
      acquisition, owner, client, priority
  grace_end, nominated = nil, '0'
end
successor_deadline, successor_changed = now + tonumber(ARGV[9]), true
-- The grace runs from the first reservation that asked for one; polling does not move it.
if ARGV[10] ~= '' and not grace_end then grace_end = now + tonumber(ARGV[10]) end
-- Events may be lost, so each poll tells the holder again.
tell_holder('Y', yield_notice())
return finish(with_fence({3, left(deadline), left(grace_end), holder_owner, holder_priority}))
