package store

// Settled says whether the store has taken note of the last change of one of the node's own keys.
func (p *Publisher) Settled(key Key) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	o, ok := p.own[key]
	return !ok || o.sequence <= p.acked
}
