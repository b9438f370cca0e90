"""A Windows VM for games, with a card that the homelab stack has bound and offers to VMs.

homelab's outputs ─► LentCards (their version, who has the card) ─► GpuVm (created, with the card)
"""

import pulumi
from lent_cards import LentCards

from homelab import settings_of_the_stack
from homelab.components import GpuVm

settings = settings_of_the_stack()
lender = pulumi.StackReference(pulumi.Config().require("homelab"))
vms = {}
for vm in settings.vms.values():
    host = settings.hosts[vm.host]
    cards = LentCards(vm, host=host, stack=lender)
    # A VM isn't even created where its card isn't to be had.
    after = pulumi.ResourceOptions(depends_on=cards.cards.apply(lambda _: [lender]))
    vms[vm.name] = GpuVm(vm, host=host, cards=cards.cards, boot=cards.boot, opts=after).vm

pulumi.export("vms", vms)
