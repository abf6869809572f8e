-- Watch: registers, or refreshes, a waiter, and tells what already is. Also the waiter's look when
-- a deadline has passed or an event may have been lost. Invariant: a waiter counts until its own
-- registration lease is over, so a dead one never stalls the queue; refreshing it keeps its place.
--
-- A waiter's entry (field w:ACQUISITION), of fixed widths:
--     1 order of priority (2^64 - 1 - priority), 20     21 number of registration, 16
--    37 deadline, 16     53 reservation lease, 16     69 barging     70 woken and has not asked since
--    71 client, 16       87 priority, 20             107 owner
-- Its member of the waiting list is the first 36 bytes and the acquisition.
--
-- ARGV: 3 client   4 role ('h' holder, 'w' waiter)   5 owner   6 priority   7 order of priority
-- 8 barging ('1'/'0')   9 reservation lease   10 registration lease   11 whose place to take ('' for
-- none)
-- Reply: {1 holds, left} {2 holds and is to yield, grace left or -1, thief's priority, left of the
-- reservation} {3 holds no more}
-- {4 may claim, why} {5 waits, left of what is in the way, '1' if it comes next}
-- An error 'WRONGTYPE waiting list' if its key holds something else; then nothing was changed.
if handle_at(acquisition) then
  if successor then
    return finish({2, left(grace_end), successor_priority, left(successor_deadline)})
  end
  return finish({1, left(deadline)})
end
if ARGV[4] == 'h' then return finish({3}) end
local unlisted = redis.pcall('ZRANGE', W, 0, 0).err
if unlisted and string.find(unlisted, 'WRONGTYPE', 1, true) then
  return redis.error_reply('WRONGTYPE waiting list')
end

local client, owner, priority = ARGV[3], ARGV[5], ARGV[6]
local number
local woken = '0'
if waiter and string.sub(waiter, 87, 106) == priority and
   tonumber(string.sub(waiter, 37, 52)) > now then
  number, woken = string.sub(waiter, 21, 36), string.sub(waiter, 70, 70)
elseif waiter then
  forget_waiter(acquisition, waiter)
end
if ARGV[11] ~= '' and ARGV[11] ~= acquisition then
  local old = redis.call('HGET', K, 'w:' .. ARGV[11])
  if old and tonumber(string.sub(old, 37, 52)) > now and string.sub(old, 87, 106) == priority then
    if number then forget_waiter(acquisition, waiter) end
    number, woken = string.sub(old, 21, 36), '0'
    forget_waiter(ARGV[11], old)
    if not handles and successor == ARGV[11] and nominated == '1' then
      successor, successor_owner, successor_client = acquisition, owner, client
      successor_changed = true
    end
  end
end
if not number then number = string.format('%016.0f', redis.call('HINCRBY', K, 'q', 1)) end

local until_ = now + tonumber(ARGV[10])
waiters_until = math.max(waiters_until, until_)
local place = ARGV[7] .. number
redis.call('HSET', K, 'wd', text(waiters_until), 'w:' .. acquisition,
           place .. string.format('%016.0f', until_) ..
           string.format('%016.0f', tonumber(ARGV[9])) .. ARGV[8] .. woken .. client .. priority ..
           owner)
redis.call('ZADD', W, 0, place .. acquisition)
local keep = math.max(fence, waiters_until, handles and deadline or 0) + SLACK - now
local keep_ms = text(math.ceil(keep / 1000) + 1000)
redis.call('PEXPIRE', K, keep_ms)
redis.call('PEXPIRE', W, keep_ms)

local why = freed or 'r'
if not handles and not successor then freed = why end
finish()
if not handles and (claimer == acquisition or successor == acquisition or
                    (successor and priority > successor_priority)) then
  return {4, why}
end
local next_one = successor == acquisition or waiter_at(0) == acquisition
local in_the_way = handles and deadline or (successor and successor_deadline) or now
return {5, left(in_the_way), next_one and '1' or '0'}
