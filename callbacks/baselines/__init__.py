"""The methods that HPA is compared with, one file each; they are attached to a Trainer as HPA's callbacks are."""
