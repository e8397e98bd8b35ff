"""SIRI on other people's trainers; nothing here is imported until it is asked for."""
