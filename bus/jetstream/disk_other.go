//go:build !linux && !darwin

package jetstream

import "errors"

// freeSpace is not known here: there is no watermark.
func freeSpace(string) (free, total int64, err error) {
	return 0, 0, errors.ErrUnsupported
}
