package jetstream
import ("testing";"context";"sync";"fmt";"time";"github.com/sensor-engine/engine/bus")
func TestScratchLoss(t *testing.T) {
	e := newExternal(t, nil)
	for round := range 60 {
		o := e.options(); o.Prefix = fmt.Sprintf("r%d", round); o.AckTimeout = 3*time.Second
		b := mustOpen(t, o)
		var wg, all sync.WaitGroup
		var mu sync.Mutex
		var worst time.Duration
		lost := 0
		for w := range 8 { all.Go(func(){ for i := range 500 { wg.Add(1); t0 := time.Now()
			b.Events().AppendAsync(t.Context(), bus.Record{Subject: bus.EventSubject("s","e"), Data: fmt.Appendf(nil,"%d-%d",w,i)}, func(_ bus.Ack, err error){ mu.Lock(); if d := time.Since(t0); d > worst { worst = d }; if err != nil { lost++ }; mu.Unlock(); wg.Done() }) } }) }
		all.Wait(); wg.Wait()
		i, _ := b.Events().Info(context.Background())
		t.Logf("round %d worst %v lost %d stored %d", round, worst, lost, i.Records)
		b.Close(context.Background())
	}
}
