package jetstream

// Syncs and DiskSyncs let tests see what is synced.
type (
	Syncs     = syncs
	DiskSyncs = diskSyncs
)

// WithSyncs returns o with another way to sync.
func WithSyncs(o Options, s Syncs) Options {
	o.syncs = s
	return o
}
