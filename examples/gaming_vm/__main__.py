"""A Windows VM for games, with a card that the homelab stack has bound and offers to VMs.

homelab's outputs ─► LentCards (their version, who has the card) ─► GpuVm (created, with the card)
"""

import pulumi
from lent_cards import LentCards, LentCardsArgs

from homelab.components.gpu_vm import GpuVm, GpuVmArgs
from homelab.errors import HomelabError
from homelab.stack import Refusal, load

try:
    settings = load()
except HomelabError as error:
    raise Refusal(error) from None

homelab = pulumi.StackReference(pulumi.Config().require("homelab"))
vms = {}
for name, vm in settings.vms.items():
    host = settings.hosts[vm.host]
    cards = LentCards(f"{name}-cards", LentCardsArgs(stack=homelab, vm_name=name, vm=vm, host=host))
    args = GpuVmArgs(vm=vm, node=host.node or vm.host, cards=cards.cards, boot=cards.boot)
    # A VM isn't even created where its card isn't to be had.
    after = pulumi.ResourceOptions(depends_on=cards.cards.apply(lambda _: [homelab]))
    vms[name] = GpuVm(name, args, after).vm

pulumi.export("vms", vms)
