-- The history of one host, version 2 (PRAGMA user_version). Times are milliseconds since 1970, a day is that many days
-- since 1970. Everything is counted twice: in the row of its hour, and in that of the whole day (hour 24), whose `hours`
-- have a bit for each hour in which something was seen. So a day's hours can go without anything to be summed up.

-- Single numbers: the generation of the readings, what was counted without ends, when the last batch was taken, and the
-- first day of which all hours are there.
CREATE TABLE meta (name TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID;

CREATE TABLE peers (
  id INTEGER PRIMARY KEY, name TEXT NOT NULL, namespace TEXT NOT NULL,
  UNIQUE (name, namespace)
);
CREATE TABLE links (
  id INTEGER PRIMARY KEY, source INTEGER NOT NULL, destination INTEGER NOT NULL,
  protocol INTEGER NOT NULL, port INTEGER NOT NULL,
  UNIQUE (source, destination, protocol, port)
);
-- An empty address: all of them.
CREATE TABLE edges (
  id INTEGER PRIMARY KEY, link INTEGER NOT NULL, direction INTEGER NOT NULL,
  outcome INTEGER NOT NULL, reason INTEGER NOT NULL, address TEXT NOT NULL,
  UNIQUE (link, direction, outcome, reason, address)
);
CREATE TABLE counts (
  edge INTEGER NOT NULL, day INTEGER NOT NULL, hour INTEGER NOT NULL, hours INTEGER NOT NULL,
  first INTEGER NOT NULL, last INTEGER NOT NULL,
  attempts INTEGER NOT NULL, established INTEGER NOT NULL, refused INTEGER NOT NULL, timed_out INTEGER NOT NULL,
  bytes_sent INTEGER NOT NULL, bytes_received INTEGER NOT NULL,
  packets_sent INTEGER NOT NULL, packets_received INTEGER NOT NULL,
  PRIMARY KEY (edge, day, hour)
) WITHOUT ROWID;
-- What the kernel's counters stood at when `counts` was last written: always in the same transaction.
CREATE TABLE readings (
  key BLOB PRIMARY KEY, edge INTEGER,
  attempts INTEGER NOT NULL, established INTEGER NOT NULL, refused INTEGER NOT NULL, timed_out INTEGER NOT NULL,
  bytes_sent INTEGER NOT NULL, bytes_received INTEGER NOT NULL,
  packets_sent INTEGER NOT NULL, packets_received INTEGER NOT NULL
) WITHOUT ROWID;
CREATE TABLE unattributed (
  day INTEGER NOT NULL, hour INTEGER NOT NULL, count INTEGER NOT NULL,
  PRIMARY KEY (day, hour)
) WITHOUT ROWID;
CREATE TABLE executables (
  link INTEGER NOT NULL, direction INTEGER NOT NULL, path TEXT NOT NULL, last INTEGER NOT NULL,
  PRIMARY KEY (link, direction, path)
) WITHOUT ROWID;
-- By which names a workload asked for an address.
CREATE TABLE names (
  peer INTEGER NOT NULL, address TEXT NOT NULL, name TEXT NOT NULL, last INTEGER NOT NULL,
  PRIMARY KEY (peer, address, name)
) WITHOUT ROWID;
-- When an agent was counting.
CREATE TABLE watched (id INTEGER PRIMARY KEY, first INTEGER NOT NULL, last INTEGER NOT NULL);
