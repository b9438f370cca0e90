"""`homelab COMMAND`: what the program does beside `pulumi up`. Each command is a thin module of this
package."""
