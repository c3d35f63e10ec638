//! What `quarry check` asks the clusters.
