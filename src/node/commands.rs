//! Running programs: argv, a deadline, and their error text.
