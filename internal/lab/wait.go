package lab

import (
	"context"
	"fmt"
	"time"
)

// startPatience is how long a program may take until it answers; one that has ended is not waited for. On an emulated machine it takes long.
const startPatience = 3 * time.Minute

// Wait polls until check returns nil, and fails with check's last error when the time is over.
func Wait(ctx context.Context, what string, within time.Duration, check func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, within)
	defer cancel()
	var last error
	for pause := time.Millisecond; ; pause = min(2*pause, 50*time.Millisecond) {
		err := check(ctx)
		if err == nil {
			return nil
		}
		if ctx.Err() == nil || last == nil {
			last = err
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("wait %s for %s: %w", within, what, last)
		case <-time.After(pause):
		}
	}
}
