# What Proxmox VE's own code says against guests that don't exist yet. Nothing is made.
#
# Standard input: a list of guests, each with its name, kind (qemu or lxc) and options. Output: name -> option -> mistake.
use strict;
use warnings;
use JSON::PP;
use PVE::API2::LXC;
use PVE::API2::Qemu;
use PVE::Cluster;
use PVE::INotify;
use PVE::JSONSchema;
use PVE::RPCEnvironment;
use PVE::Storage;

my ($guests, %found) = (decode_json(do { local $/; <STDIN> }));
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
    my $is_made = $volume =~ /^(?:\d+(?:\.\d+)?|cloudinit)$/;
    return $is_made && !$storage->{content}{$content} ? "storage '$name' has no content '$content'" : "";
}

for my $guest (@$guests) {
    my $api = $guest->{kind} eq "qemu" ? "PVE::API2::Qemu" : "PVE::API2::LXC";
    my $schema = $api->map_method_by_name("create_vm")->{parameters};
    my ($options, %errors) = ($guest->{options});
    eval { PVE::JSONSchema::validate({ %$options, node => PVE::INotify::nodename() }, $schema, "x\n") };
    %errors = ref($@) ? %{$@->{errors}} : (create => $@) if $@;
    for my $key (grep { !$errors{$_} } keys %$options) {
        my $error = beyond_schema($key, $options->{$key});
        $errors{$key} = $error if $error;
    }
    $found{$guest->{name}} = \%errors if %errors;
}
print JSON::PP->new->canonical->encode(\%found);
