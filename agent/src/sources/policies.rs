//! Policy files: read, and the last good form of each kept.
