# What Proxmox VE's own code says against guests that don't exist yet. Nothing is made.
#
# Standard input: {"vms": name -> options, "containers": the same}. Output: name -> option -> mistake.
use strict;
use warnings;
use JSON::PP;
use PVE::API2::LXC;
use PVE::API2::Qemu;

PVE::RPCEnvironment->setup_default_cli_env();
PVE::Cluster::cfs_update();

# Against a value that the API's schema takes: its bridge, its storage.
sub beyond_schema {
    my ($key, $value) = @_;
    return "bridge '$1' does not exist" if "$key,$value" =~ /^net.*,bridge=([^,]+)/ && !-d "/sys/class/net/$1";
    return if $key !~ /^(?:ide|sata|scsi|virtio|efidisk|tpmstate|mp|rootfs)\d*$/;
    my ($name, $volume) = $value =~ m!^(?:file=|volume=)?([^:/,]+):([^,]+)! or return;
    my $storage = eval { PVE::Storage::storage_check_enabled(PVE::Storage::config(), $name) } or return $@;
    my $content = $key =~ /^(?:mp|rootfs)/ ? "rootdir" : "images";
    my $is_there = $volume !~ /^(?:\d+(?:\.\d+)?|cloudinit)$/;
    return $is_there || $storage->{content}{$content} ? undef : "storage '$name' has no content '$content'";
}

sub mistakes {
    my ($api, $options, %errors) = @_;
    my $schema = $api->map_method_by_name("create_vm")->{parameters};
    eval { PVE::JSONSchema::validate({ %$options, node => "localhost" }, $schema, "x\n") };
    %errors = ref($@) ? %{$@->{errors}} : (create => $@) if $@;
    $errors{$_} ||= beyond_schema($_, $options->{$_}) for keys %$options;
    return { map { $errors{$_} ? ($_ => $errors{$_}) : () } keys %errors };
}

my ($wanted, %found) = (decode_json(join "", <STDIN>));
$found{$_} = mistakes("PVE::API2::Qemu", $wanted->{vms}{$_}) for keys %{$wanted->{vms}};
$found{$_} = mistakes("PVE::API2::LXC", $wanted->{containers}{$_}) for keys %{$wanted->{containers}};
print JSON::PP->new->canonical->encode(\%found);
