"""The engine behind the interfaces that programs speak: OpenAI's and Anthropic's. Extra `server`."""
