-- Unwatch: ends a waiter's registration. Invariant: touches neither a hold nor a thief's
-- reservation; a nomination that was not claimed goes to the next waiter.
--
-- Reply: 1
forgets, reply = true, 1
if not handles and successor == acquisition and nominated == '1' then
  successor, changed, freed = false, true, freed or 'r'
end
