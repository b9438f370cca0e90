// SPDX-License-Identifier: GPL-2.0
/*
 * Stands in for NVIDIA's driver on the metal tier's hosts: a driver of QEMU's VGA adapter that does with a card's users, and says of its cards,
 * what NVIDIA's open kernel modules do (kernel-open/nvidia: nv.c, nv-pci.c, nv-procfs.c, as of 535 to 595):
 *
 * - /dev/nvidiaN is 195:N, N the lowest number that is free when a card comes. Opening one without a card: ENODEV. Who has it open has the
 *   module, too: rmmod says "in use".
 * - remove() can't refuse. While somebody has the card it waits, uninterruptibly, and looks every half second.
 * - /proc/driver/nvidia/version, /proc/driver/nvidia/gpus/ADDRESS/information.
 *
 * Parameter held: the kernel itself holds each card, and nobody lets it go: the wait never ends (595 and later).
 *
 * It has no alias, so that nothing loads it but modprobe by its name. It draws nothing.
 */
#include <linux/cdev.h>
#include <linux/delay.h>
#include <linux/fs.h>
#include <linux/module.h>
#include <linux/mutex.h>
#include <linux/pci.h>
#include <linux/proc_fs.h>
#include <linux/seq_file.h>
#include <linux/slab.h>

#define MAJOR_NUMBER 195
#define MOST 8
#define CONTROL 255

struct card {
	struct pci_dev *pci;
	struct proc_dir_entry *folder;
	int minor;
	int users;
};

static bool held;
module_param(held, bool, 0644);

static struct card *cards[MOST];
static DEFINE_MUTEX(lock);
static struct cdev nodes;
static struct proc_dir_entry *place, *gpus;

static int node_open(struct inode *inode, struct file *file)
{
	unsigned int minor = iminor(inode);
	int status = 0;

	file->private_data = NULL;
	if (minor == CONTROL)
		return 0;
	mutex_lock(&lock);
	if (minor < MOST && cards[minor]) {
		cards[minor]->users++;
		file->private_data = cards[minor];
	} else {
		status = -ENODEV;
	}
	mutex_unlock(&lock);
	return status;
}

static int node_release(struct inode *inode, struct file *file)
{
	struct card *card = file->private_data;

	mutex_lock(&lock);
	if (card)
		card->users--;
	mutex_unlock(&lock);
	return 0;
}

static const struct file_operations operations = {
	.owner = THIS_MODULE,
	.open = node_open,
	.release = node_release,
};

static int show_version(struct seq_file *out, void *unused)
{
	seq_puts(out, "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  595.45.04  Release Build  (stand-in)\n");
	return 0;
}

static int show_card(struct seq_file *out, void *unused)
{
	struct card *card = out->private;

	seq_printf(out, "Bus Location: \t %s\nDevice Minor: \t %d\n", pci_name(card->pci), card->minor);
	return 0;
}

static int card_probe(struct pci_dev *pci, const struct pci_device_id *id)
{
	struct card *card = kzalloc(sizeof(*card), GFP_KERNEL);
	int minor = 0, status;

	if (!card)
		return -ENOMEM;
	status = pci_enable_device(pci);
	if (status) {
		kfree(card);
		return status;
	}
	mutex_lock(&lock);
	while (minor < MOST && cards[minor])
		minor++;
	if (minor == MOST) {
		mutex_unlock(&lock);
		pci_disable_device(pci);
		kfree(card);
		return -ENOSPC;
	}
	card->pci = pci;
	card->minor = minor;
	cards[minor] = card;
	mutex_unlock(&lock);
	pci_set_drvdata(pci, card);
	card->folder = proc_mkdir(pci_name(pci), gpus);
	if (card->folder)
		proc_create_single_data("information", 0444, card->folder, show_card, card);
	return 0;
}

static bool has_users(struct card *card)
{
	bool answer;

	mutex_lock(&lock);
	answer = held || card->users > 0;
	mutex_unlock(&lock);
	return answer;
}

static void card_remove(struct pci_dev *pci)
{
	struct card *card = pci_get_drvdata(pci);

	if (has_users(card)) {
		pci_warn(pci, "NVRM: Attempting to remove device %s with non-zero usage count!\n", pci_name(pci));
		while (has_users(card))
			msleep(500);
		pci_warn(pci, "NVRM: Continuing with GPU removal for device %s\n", pci_name(pci));
	}
	mutex_lock(&lock);
	cards[card->minor] = NULL;
	mutex_unlock(&lock);
	proc_remove(card->folder);
	pci_disable_device(pci);
	kfree(card);
}

static const struct pci_device_id ids[] = {
	{ PCI_DEVICE(0x1234, 0x1111) },
	{ }
};

static struct pci_driver driver = {
	.name = "nvidia",
	.id_table = ids,
	.probe = card_probe,
	.remove = card_remove,
};

static int __init start(void)
{
	dev_t first = MKDEV(MAJOR_NUMBER, 0);
	int status = register_chrdev_region(first, CONTROL + 1, "nvidia");

	if (status)
		return status;
	cdev_init(&nodes, &operations);
	nodes.owner = THIS_MODULE;
	status = cdev_add(&nodes, first, CONTROL + 1);
	if (status)
		goto numbers;
	place = proc_mkdir("driver/nvidia", NULL);
	gpus = place ? proc_mkdir("gpus", place) : NULL;
	if (!gpus || !proc_create_single("version", 0444, place, show_version)) {
		status = -ENOMEM;
		goto files;
	}
	status = pci_register_driver(&driver);
	if (!status)
		return 0;
files:
	proc_remove(place);
	cdev_del(&nodes);
numbers:
	unregister_chrdev_region(first, CONTROL + 1);
	return status;
}

static void __exit end(void)
{
	pci_unregister_driver(&driver);
	proc_remove(place);
	cdev_del(&nodes);
	unregister_chrdev_region(MKDEV(MAJOR_NUMBER, 0), CONTROL + 1);
}

module_init(start);
module_exit(end);
MODULE_LICENSE("GPL");
MODULE_DESCRIPTION("What NVIDIA's driver is to a host, for tests");
