//! vhost-net-pv
