-- Unwatch: ends a waiter's registration. Invariant: touches neither a hold nor a thief's
-- reservation; a nomination that was not claimed goes to the next waiter.
--
-- Reply: 1
if waiter then forget_waiter(acquisition, waiter) end
if not handles and successor == acquisition and nominated == '1' then withdraw_reservation() end
return finish(1)
