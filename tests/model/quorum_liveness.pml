/* L2 on three servers: the highest priority is inside a majority within one lease and a tick.
 *
 * One asker of the highest priority against everybody else, who are one hostile crowd: it takes
 * what is free, extends whatever it holds unless reserved, never listens and leaves when it
 * likes. On each server the asker polls once a tick: it obtains, or reserves, or renews what it
 * already has there while the rest is missing.
 *
 * MUT_GRANTS_NOT_RENEWED: the asker does not renew its first grants while it waits for the
 * others.
 */
#define SERVERS 3
#ifndef LEASE
#define LEASE 3
#endif
#ifndef RESERVATION
#define RESERVATION 2
#endif
#ifndef MARGIN
#define MARGIN 1
#endif
#ifndef WAIT_BOUND
#define WAIT_BOUND (LEASE + 1)
#endif

#define NOBODY 0
#define CROWD 1
#define ASKER 2
byte holder[SERVERS], left[SERVERS], reserved[SERVERS];
bool polled[SERVERS];
bool inside;
byte waited;
#ifdef SHORTEST                /* the breadth-first search cannot hide scratch variables from the state */
#define SCRATCH
#else
#define SCRATCH hidden
#endif
SCRATCH byte L2_waits_too_long;

active [SERVERS] proctype Server() {
  do
  :: d_step { holder[_pid] == NOBODY && reserved[_pid] == 0 ->
       printf("crowd: takes server %d\n", _pid);
       holder[_pid] = CROWD; left[_pid] = LEASE }
  :: d_step { holder[_pid] == CROWD && reserved[_pid] == 0 && left[_pid] < LEASE ->
       printf("crowd: extends on server %d\n", _pid);
       left[_pid] = LEASE }
  :: d_step { holder[_pid] == CROWD ->
       printf("crowd: leaves server %d\n", _pid); holder[_pid] = NOBODY; left[_pid] = 0 }
  :: d_step { !polled[_pid] && !inside -> polled[_pid] = 1; printf("asker: polls server %d\n", _pid);
       if
       :: holder[_pid] == NOBODY -> holder[_pid] = ASKER; left[_pid] = LEASE; reserved[_pid] = 0
       :: holder[_pid] == CROWD -> reserved[_pid] = RESERVATION
#ifdef MUT_GRANTS_NOT_RENEWED
       :: holder[_pid] == ASKER -> skip
#else
       :: holder[_pid] == ASKER -> left[_pid] = LEASE
#endif
       fi }
  od
}

inline server_tick(n) {
  polled[n] = 0;
  if :: reserved[n] > 0 -> reserved[n]-- :: else fi;
  if :: left[n] > 0 -> left[n]--; if :: left[n] == 0 -> holder[n] = NOBODY :: else fi :: else fi
}
inline server_forget(n) {
  if :: holder[n] == ASKER -> holder[n] = NOBODY; left[n] = 0 :: else fi;
  reserved[n] = 0
}
#define COUNTS(n) (holder[n] == ASKER && left[n] > MARGIN)
#define MAJORITY ((COUNTS(0) && COUNTS(1)) || (COUNTS(0) && COUNTS(2)) || (COUNTS(1) && COUNTS(2)))

active proctype Asker() {
  do
  :: d_step { !inside && MAJORITY ->
       printf("asker: ENTERS\n"); inside = 1; waited = 0 }
  :: d_step { inside ->
       printf("asker: leaves\n"); inside = 0; server_forget(0); server_forget(1); server_forget(2) }
  :: d_step { !inside && !MAJORITY && polled[0] && polled[1] && polled[2] -> printf("tick\n");
       waited++; L2_waits_too_long = (waited > WAIT_BOUND); assert(!L2_waits_too_long);
       server_tick(0); server_tick(1); server_tick(2) }
  od
}
