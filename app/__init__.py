"""The inference router: the data-plane entry of an InferenceService. Start reading at docs/architecture.md."""
