"""What a probe finds in the features of a merged model, and how that is shown."""
