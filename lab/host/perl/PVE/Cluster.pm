package PVE::Cluster;

# Proxmox VE's other modules need it to be loaded first.
use strict;
use warnings;

1;
