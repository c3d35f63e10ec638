//! The TPer as a host sees it: transcripts, flows of the usual tools, and what hostile hosts send.

mod client;
mod flows;
mod hostile;
mod transcripts;
