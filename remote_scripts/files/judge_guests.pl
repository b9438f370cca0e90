# What Proxmox VE's own code says against guests that don't exist yet. Nothing is made.
#
# Standard input: {"vms": name -> options, "containers": the same}. Output: name -> option -> mistake.
use strict;
use warnings;
use JSON::PP;
use PVE::API2::LXC;
use PVE::API2::Qemu;

my ($wanted, %found) = (decode_json(do { local $/; <STDIN> }));
PVE::RPCEnvironment->setup_default_cli_env();
PVE::Cluster::cfs_update();
my $storages = PVE::Storage::config();

# Against a value that the API's schema takes: its storage, its bridge.
sub beyond_schema {
    my ($key, $value) = @_;
    if ($key =~ /^net\d+$/) {
        return $value =~ /(?:^|,)bridge=([^,]+)/ && !-d "/sys/class/net/$1" ? "bridge '$1' does not exist" : "";
    }
    return "" if $key !~ /^(?:(?:ide|sata|scsi|virtio|efidisk|tpmstate|mp)\d+|rootfs)$/;
    my ($name, $volume) = $value =~ m!^(?:file=|volume=)?([^:/,]+):([^,]+)! or return "";
    my $storage = eval { PVE::Storage::storage_check_enabled($storages, $name) } or return $@;
    my $content = $key =~ /^(?:mp|rootfs)/ ? "rootdir" : "images";
    my $is_there = $volume !~ /^(?:\d+(?:\.\d+)?|cloudinit)$/;
    return $is_there || $storage->{content}{$content} ? "" : "storage '$name' has no content '$content'";
}

for (["vms", "PVE::API2::Qemu"], ["containers", "PVE::API2::LXC"]) {
    my ($guests, $schema) = ($wanted->{$_->[0]}, $_->[1]->map_method_by_name("create_vm")->{parameters});
    for my $name (keys %$guests) {
        my ($options, %errors) = ($guests->{$name});
        eval { PVE::JSONSchema::validate({ %$options, node => "localhost" }, $schema, "x\n") };
        %errors = ref($@) ? %{$@->{errors}} : (create => $@) if $@;
        $errors{$_} ||= beyond_schema($_, $options->{$_}) for keys %$options;
        $found{$name} = { map { $errors{$_} ? ($_ => $errors{$_}) : () } keys %errors };
    }
}
print JSON::PP->new->canonical->encode(\%found);
